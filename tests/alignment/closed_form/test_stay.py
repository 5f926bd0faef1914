"""What the closed form keeps in place: other entities, values of attributes, text and short prompts; no target."""

from tiny_entities import parts, settings

from sae_unlearn.alignment.closed_form.covariance import GROUPS
from sae_unlearn.alignment.closed_form.stay import stay_rows
from sae_unlearn.alignment.split import plan_entities


def planned(folder):
    given = parts()
    tokenizer = given["processing_class"]
    plan = plan_entities(
        given["train_dataset"],
        given["known"],
        given["unknown"],
        given["retain_dataset"],
        tokenizer,
        settings(folder, short_prompts=["w60 w61 w62"]),
    )
    return plan, tokenizer


def test_every_group_has_tokens_and_first_tokens_do_not_count(tmp_path):
    rows = stay_rows(*planned(tmp_path), seed=0)
    assert {group for row in rows for group in row.groups if group} == set(GROUPS)
    assert all(row.groups[0] == "" and len(row.groups) == len(row.input_ids) for row in rows)


def test_values_of_attributes_stay_where_they_end(tmp_path):
    plan, tokenizer = planned(tmp_path)
    rows = [row for row in stay_rows(plan, tokenizer, seed=0) if "value" in row.groups]
    value = tokenizer("w68", add_special_tokens=False).input_ids[-1]
    assert len(rows) == 3  # the only value, in three prompts; the tiny tokenizer does not know it in quotes
    assert [row.input_ids[row.groups.index("value")] == value for row in rows].count(True) == 2
    assert all(row.groups.count("value") == 1 for row in rows)


def test_no_target_is_kept_in_place(tmp_path):
    plan, tokenizer = planned(tmp_path)
    texts = [tokenizer.decode(row.input_ids) for row in stay_rows(plan, tokenizer, seed=0) if "name" in row.groups]
    assert not any(name in text for name in plan.targets.names for text in texts)
    assert len(set(texts)) > 10
