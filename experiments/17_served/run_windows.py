"""Full layers against a wider window at equal bytes, searched at 8,192 positions.

    python experiments/17_served/run_windows.py --data FOLDER

Ranks the layers, chooses how many are full, judges on novels that neither has seen, and writes
results/windows.csv. It goes on where it was stopped. plan_windows.toml was written before.
"""

from __future__ import annotations

import json
import tomllib

import numpy as np
import pandas as pd
import torch
from run import HERE, JUDGED, MASKS, PRIMARY, TEXT, WINDOW, Experiment, read_arguments, share
from torch import Tensor

import masksearch as ms
from masksearch_decoders.decoders import LayerStates, NextTokenModel
from masksearch_decoders.next_tokens import score_tokens

PLAN = tomllib.loads((HERE / "plan_windows.toml").read_text(encoding="utf-8"))


def main() -> None:
    given = read_arguments(__doc__)
    if given.smoke:
        TEXT.update(longest=224)
        PLAN["search"].update(length=224, ranked_at=64, counts=[0, 2])
        PLAN["judge"].update(passage=0)
    torch.set_num_threads(given.threads)
    with torch.no_grad():
        Windows(Experiment(given)).run()


class Windows:
    """The search and its verdict."""

    def __init__(self, experiment: Experiment) -> None:
        self.made, self.plan = experiment, PLAN["search"]
        self.folder = experiment.runs / "windows"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model, self.seen = NextTokenModel(experiment.model), torch.empty(0)
        self.layers = self.model.config.num_hidden_layers
        train = experiment.text(self.plan["length"]).train
        chosen = torch.linspace(0, len(train) - 1, self.plan["passages"]).long()
        rows = train[chosen].long()
        self.rank_on, self.choose_on = rows[:1], rows[2:]

    def run(self) -> None:
        """All of it."""
        ranking = self.rank()
        sets = {count: {*ranking[:count]} for count in self.plan["counts"]}
        widths = {count: self.widest(full) for count, full in sets.items()}
        mean = {
            count: self.losses(f"choose {count}", full, widths[count], self.choose_on).mean()
            for count, full in sets.items()
        }
        best = min((count for count in mean if count), key=lambda count: mean[count])
        print("chosen", best, mean, widths, ranking, flush=True)
        rows = self.judged()
        forms = {
            "dense": ({*range(self.layers)}, WINDOW, 0),
            "one window": (set(), widths[0], MASKS["sinks"]),
            "searched": (sets[best], widths[best], MASKS["sinks"]),
            "one window, no sinks": (set(), widths[0], 0),
            "searched, no sinks": (sets[best], widths[best], 0),
        }
        lines = []
        for name, (full, window, sinks) in forms.items():
            lost = self.losses(f"judged {name}", full, window, rows, sinks)
            held = share(self.made.mask(full, window, sinks), self.model.config)
            for novel, row in enumerate(lost):
                far = float(row[2048:].mean()) if len(row) > 2048 else None
                lines.append(
                    [name, json.dumps(sorted(full)), window, held, novel, row.mean(), far]
                )
        names = ["form", "full", "window", "share", "novel", "nats", "nats_from_2048"]
        out = self.folder if self.made.given.smoke else HERE / "results"
        table = pd.DataFrame(lines, columns=names)
        table.to_csv(out / "windows.csv", index=False, float_format="%.5f")
        chosen = {"ranking": ranking, "widest": widths, "chosen": best, "nats": mean}
        (out / "windows.json").write_text(json.dumps(chosen, default=float) + "\n")

    def rank(self) -> list[int]:
        """Layers by the loss that each takes away where it alone is full, best first."""
        base = self.losses("rank none", set(), self.plan["ranked_at"], self.rank_on)[:1].mean()
        worth = {}
        for layer in reversed(range(self.layers)):  # what lies below is the same, and kept
            found = self.losses(f"rank {layer}", {layer}, self.plan["ranked_at"], self.rank_on)
            worth[layer] = base - found[:1].mean()  # the first layers were judged on two
        return sorted(worth, key=lambda layer: -worth[layer])

    def widest(self, full: set[int]) -> int:
        """Keys of the window that keeps within the primary mask's bytes."""
        config = self.model.config
        most = share(self.made.mask(self.made.full[PRIMARY], WINDOW), config)
        windows = range(64, self.plan["length"], 64)
        return max(w for w in windows if share(self.made.mask(full, w), config) <= most)

    def judged(self) -> Tensor:
        """A passage of each novel that no search has seen, int64 `[novels, length]`."""
        rows = self.made.text(self.plan["length"]).held_out(JUDGED, 10_000)
        _, first = np.unique(rows.documents, return_index=True)
        return rows.tokens[first + PLAN["judge"]["passage"]][: PLAN["judge"]["novels"]]

    def losses(
        self, name: str, full: set[int], window: int, rows: Tensor, sinks: int = MASKS["sinks"]
    ) -> np.ndarray:
        """Nats of every token but the first `[rows, positions - 1]`, kept in a file."""
        path = self.folder / f"{name}.npy"
        if not path.is_file():
            scores = self.judge(self.made.mask(full, window, sinks), rows)
            np.save(path, scores.numpy())
            print(name, f"{float(scores.mean()):.4f}", flush=True)
        return np.load(path)

    def judge(self, mask: ms.Mask, rows: Tensor) -> Tensor:
        """Nats of every token but the first. Layers below the first change are not run again."""
        if rows is not self.seen:
            self.seen, self.states = rows, LayerStates(self.model, rows.numel())
        ms.attach(self.model, mask)
        return score_tokens(self.model, rows, states=self.states).nll[:, 1:]


if __name__ == "__main__":
    main()
