#!/usr/bin/env bash
# Run everything that only a GPU can show. Needs an environment with this package, its extra `test`, and vLLM for CUDA.
#
#     benchmarks/on_a_gpu.sh FOLDER      # results of the serving runs go there
#
# Each part says whether it passed; a part that fails does not stop the others, and the script then ends with 1.
set -uo pipefail
cd "$(dirname "$0")/.."
folder="${1:?give a folder for the results}"
failed=0
export HF_HUB_OFFLINE=1 VLLM_ENABLE_V1_MULTIPROCESSING=0

part() {
    local name="$1"
    shift
    if "$@"; then echo "passed: $name"; else echo "FAILED: $name"; failed=1; fi
}

python -c "import torch; assert torch.cuda.is_available(); print(torch.cuda.get_device_name())" || exit 1

part "the Triton kernels" python -m pytest -q tests/guardrail/kernels
part "operators and waits on the device" python -m pytest -q tests/guardrail/gate/test_packed.py tests/guardrail/gate/test_packed_step.py
part "speed of decoding" python -m benchmarks.speed.inference --device cuda --output "$folder/inference_speed_cuda.json"

part "generate_batch, tiny models" python -m pytest -q -n0 tests/guardrail/runtime/test_continuous_batching.py

# vLLM: the first model runner without CUDA graphs is what the plugin allows. The second runner and graphs must be
# refused by name; these tests see to that.
export VLLM_USE_V2_MODEL_RUNNER=0
part "vLLM, tiny models" python -m pytest -q -n0 tests/engines/vllm
part "the reference on the real model" python -m benchmarks.serving.reference "$folder"
part "vLLM, the real model" python -m benchmarks.serving.equality "$folder"
part "speed of vLLM, the real model" python -m benchmarks.serving.speed demo "$folder" "$folder"
part "speed of vLLM, a 2B shape" python -m benchmarks.serving.speed gemma-2-2b "$folder" "$folder"

# What was written from vLLM's source and never run: tokens and records must be those of generate(), too.
part "CUDA graphs" python -m benchmarks.serving.equality "$folder" graphs
export VLLM_USE_V2_MODEL_RUNNER=1
part "the second runner" python -m benchmarks.serving.equality "$folder" second_runner
part "the second runner, graphs" python -m benchmarks.serving.equality "$folder" second_runner_graphs
exit "$failed"
