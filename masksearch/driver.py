"""`search`, `compare` and `Study`: the only place that knows all parts."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage

from masksearch.analysis.compare import ComparedMasks, check_against, check_margin
from masksearch.analysis.pareto import ranked
from masksearch.analysis.runs import (
    Against,
    Candidate,
    describe_reuse,
    read_seeds,
)
from masksearch.contracts import (
    STORED_SPLITS,
    Evaluator,
    Executor,
    Listener,
    Record,
    Scheduler,
    Split,
    Strategy,
)
from masksearch.errors import SearchError, expects, hide_passwords, unknown_name, warn
from masksearch.evaluators.wrappers import read_limits
from masksearch.executors.local import Local
from masksearch.gates.unit_costs import with_costs
from masksearch.gates.units import Units
from masksearch.masks.checks import whole
from masksearch.masks.core import Mask
from masksearch.models.encoders import READ_OUT
from masksearch.strategies.build import build_strategy, strategy_facts, strategy_name
from masksearch.strategies.candidates import (
    on_split,
    protocols_of_rows,
    read_candidates,
    remember_found,
)
from masksearch.strategies.opening import FixedQueue, draw_enqueued, plan_opening
from masksearch.strategies.samplers import Space
from masksearch.study.console import Watcher
from masksearch.study.records import describe_call, evaluator_settings, parse_constraint
from masksearch.study.references import choose_best
from masksearch.study.session import Limits, Session
from masksearch.study.status import next_command
from masksearch.study.storage import hide_secrets
from masksearch.study.store import StudyStore
from masksearch.user_code import check_evaluator, definition_hashes

if TYPE_CHECKING:
    import pandas as pd


SEARCHING = threading.RLock()  # held by the thread whose search or comparison runs


class Study:
    """The result of a search: the records of its run folder, their best masks and front.

    Args:
        run: Folder of the run.
        storage: As in `search`; None = where the run folder says that it is, which may be a file
            in it, or what the environment variable `MASKSEARCH_STORAGE` names.
        store: The same, where it is open already.
    """

    def __init__(
        self,
        run: Path | str,
        storage: str | BaseStorage | None = None,
        store: StudyStore | None = None,
    ) -> None:
        self.run, self.storage = Path(run).expanduser().absolute(), storage
        self.store = store or StudyStore(self.run, storage, write=False)
        self.objectives = self.store.objectives()
        self.shape = self.store.shape()

    def __repr__(self) -> str:
        from masksearch.report.display import study_text

        return study_text(self.run, self.records(), self.objectives)

    def __getattr__(self, name: str) -> NoReturn:
        """Refuses a name; one of an Optuna study says where that is."""
        where = f"; Optuna's is study.optuna.{name}" if name in dir(optuna.Study) else ""
        raise AttributeError(f"a masksearch.Study has no {name!r}{where}")

    def _repr_html_(self) -> str:
        from masksearch.report.display import study_html

        return study_html(self.run, self.records(), self.objectives)

    @property
    def optuna(self) -> optuna.Study:
        """The Optuna study, for Optuna's own plots and tools. Read it, and leave it as it is:
        a trial that is added or changed cannot be resumed."""
        return self.store.optuna_study()

    def records(self) -> list[Record]:
        """Every record, by trial number."""
        return self.store.records()

    def frame(self) -> pd.DataFrame:
        """One row a trial: number, origin, name, role, source, status, mask, seed, values, ..."""
        import pandas as pd

        return pd.DataFrame(
            {
                "number": record.number,
                "origin": record.origin,
                "name": record.name,
                "role": record.role,
                "source": record.source,
                "status": record.status,
                "mask": str(record.mask) if record.mask is not None else "",
                "seed": record.seed,
                "step": record.step,
                "seconds": record.seconds,
                **record.measures,
                **record.values,
                **{f"params.{name}": value for name, value in record.params.items()},
                "fingerprint": record.fingerprint,
                "error": record.error,
            }
            for record in self.records()
        )

    def frontier(self) -> list[Record]:
        """The records that no other beats in every objective (full-fidelity results only)."""
        from masksearch.analysis.pareto import pareto

        return pareto(self.records(), self.objectives)

    def best(self, sparsity: float = 0.0, *, baselines: bool = False) -> Record:
        """The best first objective among the masks at least that sparse.

        A tie goes to the sparser mask, so that no other one beats it in every objective.

        Args:
            sparsity: Least sparsity over the non-padding query-key pairs, in [0, 1].
            baselines: Whether the masks of `baselines=` count too. Without them it is the best
                mask that the strategy has proposed.

        Raises:
            SearchError: If there is none; says the sparsest that there is.
        """
        return choose_best(self.records(), self.objectives, sparsity, baselines=baselines)

    def within(self, budget: float) -> list[Record]:
        """The strategy's masks that cost no more than a budget, the best first (as `best`).

        Args:
            budget: A share of what dense attention costs, as of `search`.
        """
        return ranked(self.records(), self.objectives, budget=budget)

    def importances(self) -> pd.DataFrame:
        """How much each parameter of the space mattered: a row for each strategy and parameter.

        Returns:
            The number of scored draws, and shares (they add up to 1) for being in the best
            quarter of the draws by all objectives ("front") and by each alone; as Optuna's
            PED-ANOVA computes them. They have no interval.

        Raises:
            SearchError: If no strategy has 20 scored draws of two parameters or more.
        """
        from masksearch.report.tables import IMPORTANCE_TRIALS, by_origin, importance_table

        table = importance_table(by_origin(self.records()), self.objectives)
        if not table.data:
            few = ", ".join(f"{row[0].text} has {row[2].text}" for row in table.rows) or "none"
            least = f"{IMPORTANCE_TRIALS} scored draws of two parameters or more"
            raise SearchError(f"{self.run}: it takes {least} to say which mattered; {few}")
        return table.frame()

    def report(self, path: Path | str = "report.html") -> Path:
        """Writes a self-contained HTML page into the run folder, or where `path` says if that is
        absolute; its figures and tables (CSV, LaTeX) lie beside it, of `a.html` in `a_figures/`.
        """
        from masksearch.report.collect import report_on

        return report_on(self.run, self.run / path, storage=self.storage)


class Comparison(ComparedMasks):
    """The result of `compare`: each mask's run with each seed, tables of them, and a verdict."""

    def __repr__(self) -> str:
        from masksearch.report.display import comparison_text

        return comparison_text(self)

    def _repr_html_(self) -> str:
        from masksearch.report.display import comparison_html

        return comparison_html(self)

    @classmethod
    def open(cls, run: Path | str, storage: str | BaseStorage | None = None) -> Comparison:
        """A comparison that is stored in a run folder.

        Args:
            run: The folder.
            storage: As in `open_study`.

        Raises:
            SearchError: If the folder holds none.
        """
        store = StudyStore(Path(run), storage, write=False)
        facts = store.facts()
        if facts.get("kind") != "compare":
            raise SearchError(f"{run} holds no comparison; give the folder of compare(.., run=)")
        about = store.told(), store.objectives(), facts
        return cls.of(*about, run=store.run, shape=store.shape(), storage=storage)

    def report(self, path: Path | str | None = None) -> Path:
        """Writes the comparison as one self-contained HTML page.

        Args:
            path: Of the page; None = `report.html` in the run folder.

        Returns:
            The page's path; beside it are its figures (PNG, PDF, SVG) and tables (CSV, LaTeX): of
            `report.html` in `figures/` and `tables/`, of `a.html` in `a_figures/`, `a_tables/`.

        Raises:
            ValueError: If there is neither a path nor a run folder.
        """
        from masksearch.report.collect import write_comparison

        if path is None and self.run is None:
            raise ValueError("this comparison has no run folder; give a path: report('page.html')")
        return write_comparison(self, path or Path(self.run or "") / "report.html")

    def latex(self, columns: Sequence[str] = ()) -> str:
        r"""The comparison as a LaTeX table (needs `\usepackage{booktabs}`).

        Sparsity and density, the mean of each score with its 95% interval, and seeds; the best
        mean of each column, among the masks that leave cells out, is bold.

        Args:
            columns: Further reported values, such as single tasks.
        """
        from masksearch.report.tables import comparison_table

        return comparison_table(self, columns).latex()


def open_study(run: Path | str, storage: str | BaseStorage | None = None) -> Study:
    """Opens what a search or comparison has stored, to read it; the folder may have moved.

    Args:
        run: Folder of the run.
        storage: As in `search`; None = where the run folder says that it is, which may be a file
            in it, or what the environment variable `MASKSEARCH_STORAGE` names.

    Raises:
        SearchError: If the folder holds no study, or several; lists them.
    """
    return Study(run, storage)


@expects(Callable | None, "a function that draws a mask from a trial (compare judges masks)")
def search(
    space: Space | None,
    evaluator: Evaluator,
    *,
    run: Path | str,
    storage: str | BaseStorage | None = None,
    trials: int | None = None,
    seconds: float | None = None,
    strategy: str | BaseSampler | Strategy = "tpe",
    strategy_options: Mapping[str, Any] | None = None,
    seed: int = 0,
    executor: Executor | Literal["local", "ray"] | None = None,
    scheduler: Scheduler | None = None,
    constraints: str | Sequence[str] = (),
    budget: float | Sequence[float] | None = None,
    work: float | Sequence[float] | None = None,
    baselines: Mapping[str, Mask] | None = None,
    listeners: Sequence[Listener] = (),
    enqueue: Sequence[Mapping[str, Any]] = (),
    progress: Literal["auto"] | None = "auto",
) -> Study:
    """Searches masks; calling it again with the same run folder goes on where it stopped.

    Args:
        space: Draws a mask from an Optuna trial; None where the strategy needs none ("dam",
            "prune", "sparsebert", "allocate").
        evaluator: Judges masks.
        run: Folder of the run.
        storage: None (what the run folder says; SQLite in it where it is new),
            `"journal:PATH"`, a database URL, or an Optuna storage. One outside of the run folder
            is named again when the search goes on, or is read.
        trials: End after that many trials of the strategy (done or stopped; a mask that was judged
            before counts as none); hand-designed masks come on top.
        seconds: End (between trials) after that much wall time of this call; None = no limit.
        strategy: `"random"`, `"tpe"`, `"nsga2"`, `"nsga3"`, `"gp"`, `"qmc"`, `"allocate"`,
            `"dam"`, `"prune"`, `"sparsebert"`, `"file.py:Name"`, an Optuna sampler, or an object
            with ask/tell.
        strategy_options: For "allocate": `unit`, `levels` (see `Units`), `method`, `tries`,
            `budgets`, `cost` (see `AllocateStrategy`); for "dam": `gates`, `config`,
            `densities` (see `DamStrategy`); for "sparsebert": `config` (see
            `PublishedDamStrategy`); for "prune": `rows`, `rounds`, `per`, `densities`, `by` (see
            `prune_edges`, `prune_words`); for "file.py:Name": its arguments beside `space`,
            `objectives`, `seed`, `constraints`, `evaluator`, `run`.
        seed: Seed of the proposals and of every evaluation.
        executor: Where jobs run: an executor, or "local" or "ray" with its defaults; None =
            `Local()`.
        scheduler: Ends hopeless trials early, such as `ParetoHalving`; None = every trial runs
            to its end.
        constraints: One or several, such as `"sparsity >= 0.9"`. A mask that violates one on a
            measure that is known before training is stopped without training; one on an
            objective that is reported (a measured latency) is checked at the end.
        budget: What a mask may cost, a share of dense attention's in (0, 1], or several: draw d
            has the one at d modulo their number. It is a share of the non-padding query-key pairs,
            or of what the evaluator's second objective counts (`kv_bytes`). A space asks
            `masksearch.budget_of(trial)`; draws beyond theirs are not trained and count as no
            trials, and after 50 in a row the search ends. "dam" and "prune" cut their masks at
            these densities, "allocate" solves for these budgets. The smallest is the target of
            DAM's gates, unless `config` has a `density`.
        work: In place of a budget: the largest share of the dense model's multiplications that a
            mask leaves once tokens that nobody needs are left out (`masks.work`), or several. It
            is the second objective then. Of encoders whose head reads some rows alone, as
            [CLS]'s; for "prune", which cuts words then, and for what draws from a space.
        baselines: Name -> mask, judged first, beside the trials and on top of them;
            `masks.FAMILIES` for the six families. None = with a budget the hand-designed ones
            of that cost (`masks.equal_cost_baselines`, some twenty a budget), without one none. A
            space may say which of these it holds (its attribute `starts`, a function of shape and
            budget that returns parameters): samplers learn from them. A run that
            began without goes on without.
        listeners: Called with every finished record; one with a method `reported` also with
            the reports of running trials (`masksearch.contracts.FollowsReports`).
        enqueue: Parameters that the space draws first, one mapping a mask, all that it asks for;
            they count as trials of the strategy, and samplers learn from them.
        progress: "auto" shows the search on standard error while it runs: a display on a
            terminal and in a notebook, at most a line a trial elsewhere. None = silent.

    Returns:
        The study, ready to be read.

    Raises:
        ResumeError: If the folder holds a search with another space, evaluator or seed.
        SearchError: If `trials` or `seed` is no whole number, the first five trials all fail (of a
            broken evaluator the first, or two that raise the same), the folder cannot be written,
            parameters in `enqueue` cannot be drawn, ...
        UnknownNameError: If the strategy is unknown; names the nearest.
        ValueError: If a budget is no share in (0, 1], or less than any mask costs.

    >>> import masksearch as ms
    >>> def space(trial):
    ...     return ms.masks.window(trial.suggest_int("reach", 1, 8))
    >>> evaluator = ms.PlantedEvaluator.graded(steps=2)  # too few steps to learn anything
    >>> study = ms.search(
    ...     space, evaluator, run="runs/tried", strategy="random", trials=2, progress=None
    ... )
    >>> len(study.records())
    2
    """
    check_evaluator(evaluator)
    evaluator, budgets = read_limits(evaluator, budget, work)
    _check_amounts(trials, seconds, seed, bool(baselines or (budgets and baselines is None)))
    trials, seed = whole(trials), int(seed)  # NumPy's, as no JSON takes
    reported = [objective.name for objective in evaluator.objectives]
    measured = evaluator.measure_names
    one = isinstance(constraints, str) or callable(constraints)  # none may be a function
    texts: Any = [constraints] if one else constraints
    limits = [parse_constraint(text, reported, measured) for text in texts]
    run, place = Path(run).expanduser().absolute(), _read_executor(executor)
    options = dict(strategy_options or {})
    if budgets and isinstance(space, Units):
        space = with_costs(space, evaluator, None, required=True)
    given = draw_enqueued(space, enqueue, evaluator.shape, budgets) if enqueue else []
    name = strategy_name(strategy)
    facts = {
        "kind": "search",
        **strategy_facts(strategy, hide_secrets(options)),
        "space": "" if space is None else json.dumps(definition_hashes(space)),
        "seed": str(seed),
        "constraints": json.dumps(list(texts)),
        "budget": json.dumps(budgets) if budgets else "",
        "scheduler": "" if scheduler is None else hide_passwords(repr(scheduler)),
        **_evaluator_facts(evaluator),
    }
    with _one_at_a_time(), StudyStore(run, storage) as store:
        chosen = build_strategy(
            strategy,
            space,
            evaluator,
            seed=seed,
            run=run,
            options=options,
            constraints=limits,
            budgets=budgets,
        )
        _warn_of_few(chosen, name, trials, len(budgets))
        begun = store.stored_facts()
        opening = plan_opening(given, baselines, chosen, space, evaluator, budgets, begun)
        store.create(evaluator.objectives, facts | opening.facts)
        asked = {"trials": trials, "seconds": seconds, "executor": place}
        store.note_call(describe_call(evaluator, space, **asked))
        session = Session(
            store,
            opening.before(chosen),
            evaluator,
            seed,
            Limits(
                f"search by {name}",
                trials=trials,
                seconds=seconds,
                constraints=tuple(limits),
                budgets=() if getattr(chosen, "own_budgets", False) else budgets,
            ),
            # a scheduler that has served another search begins anew
            scheduler=replace(scheduler) if is_dataclass(scheduler) else scheduler,
            listeners=listeners,
            queue=opening.queue(seed),
        )
        _run_session(session, place, progress, name)
    return Study(run, storage, store)


def _read_executor(executor: Any) -> Any:
    """An executor, or the one of that name on the command line."""
    if executor == "ray":
        from masksearch.executors.ray import RayTune

        executor = RayTune()
    return Local() if executor in (None, "local") else executor


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Waits until no other thread of this process searches or compares: torch's random numbers,
    by which models begin and drop out, and Python's warnings are those of the process."""
    if not SEARCHING.acquire(blocking=False):
        warn(
            "another thread searches, with this process's random numbers: this one waits for its "
            "end; processes run side by side"
        )
        SEARCHING.acquire()
    try:
        yield
    finally:
        SEARCHING.release()


def _check_amounts(trials: int | None, seconds: float | None, seed: int, baselines: bool) -> None:
    """Refuses a search without an end, or whose numbers are none.

    Raises:
        SearchError: Then.
    """
    if trials is None and seconds is None:
        raise SearchError("give trials= or seconds=, so that the search ends")
    if trials is not None and (whole(trials) is None or trials < (0 if baselines else 1)):
        raise SearchError(f"trials must be a whole number >= 1 (0 with baselines), got {trials!r}")
    if whole(seed) is None:
        raise SearchError(f"seed must be a whole number, got {seed!r}")
    if seconds is not None and not seconds > 0:
        raise SearchError(f"seconds must be positive, got {seconds:g}")


def _warn_of_few(strategy: Strategy, name: str, trials: int | None, budgets: int) -> None:
    """Warns where a strategy has no trials left for what it chooses."""
    needed = getattr(strategy, "jobs", 0) + budgets  # a job judges no mask
    if trials and budgets and trials < needed > budgets:
        warn(
            f"strategy {name!r} needs {needed} trials to judge a mask within each budget, and "
            f"trials is {trials}; give {needed} or more"
        )
    least = getattr(strategy, "least_trials", 0)
    if trials and least and trials <= least:
        warn(
            f"strategy {name!r} judges about {least} masks before it chooses one by their scores, "
            f"and trials is {trials}; give more of them, larger units or, of several budgets, "
            "fewer"
        )


@expects(object, "")
def compare(
    candidates: Mapping[str, Candidate],
    evaluator: Evaluator,
    *,
    run: Path | str,
    seeds: Iterable[int] = range(1000, 1005),
    split: Split | None = None,
    front_of: Study | None = None,
    kinds: Mapping[str, str] = {},
    against: Against = "named",
    margin: float | None = None,
    budget: float | Sequence[float] | None = None,
    work: float | Sequence[float] | None = None,
    storage: str | BaseStorage | None = None,
    executor: Executor | Literal["local", "ray"] | None = None,
    listeners: Sequence[Listener] = (),
    progress: Literal["auto"] | None = "auto",
) -> Comparison:
    """Judges every mask on every seed; what the run folder already holds is not run again.

    Args:
        candidates: Name -> mask, the record of a study that found it, or a text as for
            `masks.parse`: an expression, a file, `"runs/x#7"`.
        evaluator: Judges masks.
        run: Folder of the comparison.
        seeds: Evaluation seeds, shared by all masks; a seed that found a mask flatters it, and
            the verdict says so. Below three, nothing is decided; where every seed gives the
            same scores (a checkpoint that is judged as it is), the first one is enough, and the
            rows of the evaluation data, a text's documents, decide.
        split: By which rows of its data an evaluator judges that splits them: `"holdout"` (no
            search has seen them), `"validation"`, `"test"`, `"all"`; None = `"holdout"`, unless
            the evaluator is on another split than validation already.
        front_of: A search whose front is judged again: every mask of its strategy's front under
            the name `"front #7"` (trial 7), as many hand-designed masks of these densities
            (`masks.sweep_families`) and as many scrambled. `candidates` may then be empty.
        kinds: Name -> what the mask is: `"searched"` (from a search), `"hand-designed"`,
            `"control"` (dense, scrambled, the planted mask) or `"candidate"`. Where it is not
            said, what a strategy proposed (its record, or a run as text) is searched, a mask of
            `masks.FAMILIES` hand-designed, full attention a control and any other mask a
            candidate, whatever its name. The run folder remembers it.
        against: What searched masks and candidates are compared with: `"named"` (one another and
            the hand-designed masks), `"nearest"` (the hand-designed one nearest in sparsity),
            `"all"` (every hand-designed one, and candidates), or the name of a mask, or several
            names. Masks of a front are not set against one another, and within a budget the
            masks that keep it are. Where there are six hand-designed masks or more, as with
            `FAMILIES`, `"named"` takes the nearest alone. Dense attention and a control are
            opponents too, unless masks are named. The more comparisons, the more each has to
            show (Holm).
        margin: How much a mask may lose to dense attention, in units of the score: the verdict
            says whether it loses at most that, loses more, gains more, or is undecided. None =
            what the evaluator calls small (.01 of an accuracy, F1 or correlation, .05 nats a
            token), and of an evaluator that says nothing a test of no difference.
        budget: What masks of searches may cost, as in `search`, or several: a candidate that names
            a whole run (`"runs/tpe"`) stands for its best mask within each, under names such as
            `"tpe within 0.3"`, and of a front that is kept which is within the largest. A run
            without such a mask counts as failed.
        work: In place of a budget, as in `search`.
        storage: As in `search`; runs among the candidates may name it, too.
        executor: As in `search`.
        listeners: Called with every finished record.
        progress: As in `search`.

    Raises:
        CandidateError: If a candidate is no mask, there are no masks or no seeds, or the search
            of `front_of` has no front.
        EvaluatorError: If the evaluator lacks what is asked of one.
        UnknownNameError: If `kinds` names no mask of `candidates`, or no kind.
        EmptyRowError, HeadCountError, ...: If a mask does not fit the evaluator's shape, before
            anything is trained.

    >>> import masksearch as ms
    >>> comparison = ms.compare(
    ...     {"dense": ms.masks.full(), "star": ms.masks.star(), "mine": ms.masks.window(2)},
    ...     ms.PlantedEvaluator.graded(steps=2),  # too few steps to learn anything
    ...     run="runs/compared",
    ...     seeds=range(1000, 1003),
    ...     progress=None,
    ... )
    >>> [entry.kind for entry in comparison.entries.values()]
    ['control', 'hand-designed', 'candidate']
    >>> verdict = comparison.verdict()
    """
    check_evaluator(evaluator)
    run, seeds = Path(run).expanduser().absolute(), read_seeds(seeds)
    place = _read_executor(executor)
    margin = check_margin(margin, evaluator.objectives[0])
    evaluator, budgets = read_limits(on_split(evaluator, split), budget, work)
    seeds = seeds[:1] if evaluator.seedless else seeds
    front = None if front_of is None else front_of.store
    compared = read_candidates(candidates, evaluator, front, budgets, kinds, storage)
    check_against(against, compared.prints)
    with _one_at_a_time(), StudyStore(run, storage) as store:
        stored = STORED_SPLITS[evaluator.split] if evaluator.split else ""
        facts = {"kind": "compare", "half": stored, **_evaluator_facts(evaluator)}
        store.create(evaluator.objectives, facts)
        store.note_call(describe_call(evaluator, seeds=seeds, executor=place))
        judged = Comparison.of(store.records(), store.objectives(), store.facts())
        protocols = protocols_of_rows(evaluator) if compared.found else ()
        judged = replace(
            judged,
            kinds={**judged.kinds, **compared.kinds},
            meanings=evaluator.meanings,
            found_with=remember_found(judged, compared, protocols),
            promised={**judged.promised, **compared.promised},
            budgets={**judged.budgets, **compared.budgets},
            against=against,
            margin=margin,
            seedless=evaluator.seedless,
        )
        store.add_facts(judged.facts)
        here = {name: each for name, each in judged.found_with.items() if name in compared.masks}
        for line in describe_reuse(here, seeds, judged.split):
            warn(line)
        session = Session(
            store,
            FixedQueue({}, []),
            evaluator,
            0,
            Limits("compare", strict=False),
            listeners=listeners,
            queue=compared.queue(judged, seeds),
        )
        slots = getattr(place, "slots", 1)
        plan = compared.plan(judged, seeds, evaluator, len(session.queue), slots)
        _run_session(session, place, progress, "compare", plan)
        records = [
            record
            for record in store.records()
            if compared.prints.get(record.name) == record.fingerprint and record.seed in seeds
        ]
        about = records, store.objectives(), store.facts()
        return Comparison.of(*about, run=run, shape=evaluator.shape, storage=storage)


def _run_session(
    session: Session,
    executor: Executor,
    progress: Literal["auto"] | None,
    title: str,
    plan: Sequence[str] = (),
) -> None:
    """Runs the trials of one call, and shows them, and before them what is planned.

    Raises:
        KeyboardInterrupt: As it came, with a note that says how to go on.
    """
    if progress not in ("auto", None):
        raise unknown_name("progress", str(progress), ["auto"])
    shown = Watcher(session.evaluator.objectives, None, title) if progress else nullcontext()
    with shown as watcher:
        session.listeners = [*([watcher] if watcher else []), *session.listeners]
        session.restore()
        if watcher:
            for line in plan:
                watcher.display.print(f"{title}: {line}")
            watcher.work, watcher.shared = session.board.work, session.board.shared
            watcher.expect(session.expected(), session.limits.seconds)
            if getattr(executor, "address", None):  # where the head dies, Ray ends this process
                again = f"{title}: if it ends, go on with: {next_command(session.workdir)}"
                watcher.display.attempt(lambda: watcher.display.write(again))
        try:
            session.run_on(executor)
        except KeyboardInterrupt as stop:
            stop.add_note(
                f"what was finished is kept in {session.workdir}; go on with: "
                + next_command(session.workdir)
            )
            raise


def _evaluator_facts(evaluator: Evaluator) -> dict[str, str]:
    """The facts that must not change between two calls on one run folder."""
    read_out = str(evaluator_settings(evaluator).get("read_out", READ_OUT))
    return {
        "protocol": evaluator.protocol,
        "shape": json.dumps(evaluator.shape.to_dict()),
        "objectives": json.dumps([[o.name, o.goal, o.worst] for o in evaluator.objectives]),
        **({} if read_out == READ_OUT else {"read_out": read_out}),
    }
