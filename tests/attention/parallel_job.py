"""One of two processes that train under gates: `python parallel_job.py RANK FOLDER`."""

import sys
from pathlib import Path

import torch
from architectures import ARCHITECTURES
from safetensors.torch import save_file
from test_architectures import PADDED, mixed, put_as
from torch import distributed, nn

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
store = distributed.FileStore(str(folder / "store"), 2)
distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
at = ARCHITECTURES["bert"]
model, given = at.made(), at.inputs(PADDED)
put_as(at, model, "flip", mixed(at, model), given)
parallel = nn.parallel.DistributedDataParallel(model)
own = {name: value[rank : rank + 1] for name, value in given.items()}
at.read(parallel(**own)).square().mean().backward()
grads = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
save_file(grads, folder / f"{rank}.safetensors")
distributed.destroy_process_group()
