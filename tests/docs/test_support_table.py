"""Each cell of the table "Which engine can do what?" has tests of what it says."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest


TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs" / "serving.md"
UNTESTED = ("–", "no", "not tested")
"""Cells that promise nothing begin so."""

REAL = "engines/vllm/test_real_model.py"
IN_VLLM = "engines/vllm/test_equal_to_generate.py"
VLLM_REFUSES = "engines/vllm/test_fails_closed.py"
VLLM_LIMITS = "engines/vllm/test_limits.py"
VLLM_HTTP = "engines/vllm/test_http.py"
BATCHING = "guardrail/runtime/test_continuous_batching.py"
BATCHING_REFUSES = "guardrail/runtime/test_batching_fails_closed.py"
SERVER = "engines/test_transformers_serve.py"
COMMAND = "cli/test_serve_command.py"
MODES = "guardrail/runtime/test_architecture_modes.py"
SPLIT = "guardrail/base_model/test_tensor_parallel_refused.py"

TESTED = {
    "clamp, record, refuse": (
        f"{IN_VLLM}: test_chunks_and_cached_prefixes test_a_guardrail_that_only_records_changes_nothing "
        f"test_a_refusal_is_written_token_by_token; {REAL}: test_record test_refuse; "
        f"{VLLM_HTTP}: test_a_stream_has_the_refusal_and_no_other_token",
        f"{BATCHING}: test_thirty_prompts_in_pieces test_a_guardrail_that_only_records_changes_nothing "
        "test_a_refusal_is_written_token_by_token",
        "guardrail/runtime/test_refusal.py: test_every_way_of_generating_tells_the_message; "
        "guardrail/runtime/test_refusal_settings.py: test_the_action_of_a_set_can_be_changed_by_name",
    ),
    '`gate_scope="prefix"`': (
        f"{IN_VLLM}: test_chunks_and_cached_prefixes",
        f"{BATCHING}: test_thirty_prompts_in_pieces",
        f"{MODES}: test_mode",
    ),
    '`gate_scope="sequence"`': (
        f"{IN_VLLM}: test_sequence_scope_with_whole_prompts; {VLLM_REFUSES}: test_sequence_scope_needs_whole_prompts",
        f"{BATCHING}: test_sequence_scope_with_whole_prompts "
        "test_sequence_scope_is_refused_where_prompts_are_not_whole",
        f"{MODES}: test_mode",
    ),
    "several guardrails, bundles": (
        f"{IN_VLLM}: test_two_guardrails_at_one_layer_and_one_at_another; "
        f"{VLLM_HTTP}: test_it_was_checked_before_it_took_traffic",
        f"{BATCHING}: test_two_guardrails_at_one_layer_and_one_at_another; {SERVER}: test_answers_and_records",
        "guardrail/runtime/test_several_at_a_time.py: test_two_guardrails_at_one_layer_add_their_edits; "
        "guardrail/bundles/test_bundle.py: test_what_is_attached_is_what_was_saved",
    ),
    "choice by request": (
        f"{IN_VLLM}: test_requests_choose_their_guardrails; {VLLM_HTTP}: test_answers_records_and_choices",
        "",
        "guardrail/test_manage.py: test_generation_follows_the_switch",
    ),
    "chunked prefill, prefix cache, preemption": (
        f"{IN_VLLM}: test_chunks_and_cached_prefixes test_preempted_rows; "
        f"{REAL}: test_pieces_of_64_tokens_and_cached_prefixes test_preempted_prompts",
        f"{BATCHING}: test_thirty_prompts_in_pieces test_prefixes_that_requests_share "
        "test_requests_that_are_computed_again_since_the_cache_was_full",
        "",
    ),
    "speculative decoding": (
        f"engines/vllm/test_drafts.py: test_drafts; {REAL}: test_drafts",
        "",
        "guardrail/runtime/test_naive_gates.py: test_drafts_are_exact_where_state_on_the_module_is_not",
    ),
    "tensor parallel": (
        "engines/vllm/test_tensor_parallel.py: test_two_workers_have_the_same_records; "
        f"{REAL}: test_a_server_with_two_workers",
        f"{SPLIT}: test_a_model_that_is_split_over_processes_is_refused_by_name",
        f"{SPLIT}: test_a_model_that_is_split_over_processes_is_refused_by_name",
    ),
    "mixture of experts": (
        f"{IN_VLLM}: test_mixtures_of_experts",
        f"{BATCHING}: test_mixtures_of_experts",
        f"{MODES}: test_mode",
    ),
    "text of a multimodal model": (
        "engines/vllm/test_multimodal.py: test_text_of_a_model_of_text_and_images; "
        f"{VLLM_REFUSES}: test_requests_that_cannot_be_judged",
        f"{BATCHING}: test_text_of_a_multimodal_model",
        "guardrail/runtime/test_embedded.py: test_special_tokens_are_not_counted test_a_refusal_is_told_to_its_end",
    ),
    "CUDA graphs": (
        f"{VLLM_LIMITS}: test_settings_of_the_engine_are_refused_by_name; "
        f"{COMMAND}: test_on_a_gpu_no_graphs_are_captured",
        f"{BATCHING_REFUSES}: test_settings_are_refused_by_name",
        "",
    ),
    "second model runner of vLLM": (
        f"{VLLM_LIMITS}: test_settings_of_the_engine_are_refused_by_name; "
        f"{COMMAND}: test_other_plugins_stay_and_no_foreign_route_is_added",
        "",
        "",
    ),
    "KV connectors, disaggregation, sleep mode": (
        f"{VLLM_LIMITS}: test_settings_of_the_engine_are_refused_by_name",
        f"{BATCHING_REFUSES}: test_settings_are_refused_by_name",
        "",
    ),
    "pipeline parallel": ("", "", ""),
    "data parallel": ("", "", ""),
    "`sae-unlearn serve`, test before traffic": (
        f"{VLLM_HTTP}: test_it_was_checked_before_it_took_traffic",
        f"{COMMAND}: test_without_vllm_transformers_serves; "
        f"{SERVER}: test_a_guardrail_of_another_model_stops_the_start "
        "test_guardrails_are_tested_when_they_are_attached",
        "",
    ),
    "records and metrics over HTTP": (
        f"{VLLM_HTTP}: test_answers_records_and_choices test_metrics_count_what_was_enabled; "
        f"{REAL}: test_a_server_with_two_workers",
        f"{SERVER}: test_answers_and_records",
        "guardrail/runtime/test_recording.py: test_json_lines_are_added_to_a_file",
    ),
    "attributes of OpenTelemetry spans": ("", "", ""),
    "`check --url`": (
        f"{VLLM_HTTP}: test_check_from_outside",
        f"{SERVER}: test_answers_and_records; "
        "engines/test_service_check.py: test_a_server_that_takes_no_token_ids_needs_text",
        "",
    ),
}
"""By row, the tests of `vLLM`, `generate_batch` and `generate()`: files, each with functions; "" without any."""


def cells():
    """By row of the page's table, its cells."""
    text = PAGE.read_text().partition("## Which engine can do what?")[2].partition("\n\n| engine |")[0]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    return {
        row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows[1:] if not row[0].strip().startswith("-")
    }


@cache
def functions(file):
    return {node.name for node in ast.walk(ast.parse((TESTS / file).read_text())) if isinstance(node, ast.FunctionDef)}


def test_the_table_has_these_rows():
    assert list(cells()) == list(TESTED)


@pytest.mark.parametrize("row", TESTED)
def test_each_cell_that_promises_something_has_tests_that_are_there(row):
    found = cells()[row]
    assert len(found) == len(TESTED[row]) == 3
    for cell, tests in zip(found, TESTED[row], strict=True):
        promises = not cell.startswith(UNTESTED)
        assert promises == bool(tests), (row, cell)
        for part in filter(None, tests.split("; ")):
            file, _, names = part.partition(": ")
            assert set(re.findall(r"\w+", names)) <= functions(file), part
