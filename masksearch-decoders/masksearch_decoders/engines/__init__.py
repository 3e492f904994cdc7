"""The engines, by name, each in its file."""

from masksearch_decoders.engines.llama_cpp import LLAMA_CPP
from masksearch_decoders.engines.sglang import SGLANG
from masksearch_decoders.engines.tensorrt_llm import TENSORRT_LLM
from masksearch_decoders.engines.transformers import TRANSFORMERS
from masksearch_decoders.engines.vllm import VLLM

ENGINES = {each.name: each for each in (TRANSFORMERS, VLLM, SGLANG, LLAMA_CPP, TENSORRT_LLM)}
COUNTED = {each.measure: each for each in ENGINES.values() if each.keys is not None}
FEATURES = {extra: row for each in ENGINES.values() for extra, row in each.extras.items()}
CACHE_LAYOUTS = ("mask", "head", *(each.name for each in COUNTED.values()))
