"""The engines, by name, each in its file."""

from masksearch.serving.engines.llama_cpp import LLAMA_CPP
from masksearch.serving.engines.sglang import SGLANG
from masksearch.serving.engines.tensorrt_llm import TENSORRT_LLM
from masksearch.serving.engines.transformers import TRANSFORMERS
from masksearch.serving.engines.vllm import VLLM

ENGINES = {each.name: each for each in (TRANSFORMERS, VLLM, SGLANG, LLAMA_CPP, TENSORRT_LLM)}
COUNTED = {each.measure: each for each in ENGINES.values() if each.keys is not None}
ACCOUNTS = ("mask", "head", *(each.name for each in COUNTED.values()))
