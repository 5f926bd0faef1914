"""Which latents are chosen, whether they separate held-out entities, and the frozen references."""

import math

import pytest
import torch
from tiny_entities import entities, parts, settings

from sae_unlearn import AlignmentError, EntitySet, SparseAutoencoder
from sae_unlearn.alignment.dataset import AlignmentItems, draw_pairs
from sae_unlearn.alignment.latents import firing_frequency, latent_scores, mean_per_entity, select_latents, separation
from sae_unlearn.alignment.prompts import PromptRow, TemplateGroups
from sae_unlearn.alignment.split import plan_entities
from sae_unlearn.alignment.states import code_statistics, entity_states
from sae_unlearn.alignment.trainer import SAEAlignmentTrainer
from sae_unlearn.stats import auc


KNOWN = torch.tensor([[0.9, 0.8, 0.1, 0.0, 0.5], [0.2, 0.7, 0.1, 0.1, 0.5]])
UNKNOWN = torch.tensor([[0.1, 0.1, 0.6, 0.0, 0.5], [0.1, 0.2, 0.9, 0.1, 0.5]])


def test_a_latent_scores_by_its_worst_entity_type():
    torch.testing.assert_close(latent_scores(KNOWN, UNKNOWN), torch.tensor([0.1, 0.5, -0.8, 0.0, 0.0]))


def test_the_best_latents_of_each_kind_are_taken_and_only_those_with_a_score():
    found = select_latents(KNOWN, UNKNOWN, None, 3, 3)
    assert (found.known, found.unknown) == ([1, 0], [2])
    assert found.known_scores == pytest.approx([0.5, 0.1])
    assert select_latents(KNOWN, UNKNOWN, None, 1, 0).known == [1]


def test_latents_that_fire_on_ordinary_tokens_are_left_out():
    generic = torch.tensor([0.0, 0.03, 0.0, 0.0, 0.0])
    assert select_latents(KNOWN, UNKNOWN, generic, 3, 3).known == [0]
    assert select_latents(KNOWN, UNKNOWN, generic, 3, 3, max_generic=0.05).known == [1, 0]


def test_no_latent_at_all_is_an_error_that_says_what_to_do():
    with pytest.raises(AlignmentError, match="sae, max_generic_frequency="):
        select_latents(KNOWN, KNOWN, None, 3, 3)


def test_codes_of_an_sae_with_normalised_inputs_are_its_pre_activations(tmp_path):
    given = parts()
    sae = given["sae"]
    weights = [getattr(sae, name).detach() for name in ("W_enc", "b_enc", "W_dec", "b_dec")]
    topk = SparseAutoencoder(*weights, architecture="topk", k=30, layer=sae.layer, input_norm="layer")
    it = SAEAlignmentTrainer(args=settings(tmp_path, min_separation=0.0, max_steps=2), **given | {"sae": topk})
    h = 5 * torch.randn(3, topk.d_in) + 1
    ids = [*it.latents.known, *it.latents.unknown]
    torch.testing.assert_close(it.setting.code(h), topk.pre_activations(h)[:, ids])
    it.train()


def test_the_firing_frequency_is_the_share_of_rows_however_they_are_cut():
    g = torch.Generator().manual_seed(0)
    W = torch.randn(6, 11, generator=g)
    sae = SparseAutoencoder(W, torch.zeros(11), W.T.contiguous(), torch.zeros(6), architecture="standard")
    h = torch.randn(25, 6, generator=g)
    expected = (sae.encode(h) > 0).float().mean(dim=0)
    torch.testing.assert_close(firing_frequency(sae, h, block=4), expected)


def test_auc_counts_pairs_and_ties_by_half():
    assert auc(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 1.0])) == (1 + 1 + 0 + 0.5) / 4
    assert math.isnan(auc(torch.tensor([]), torch.tensor([1.0])))


def test_entities_are_judged_by_the_mean_over_their_prompts():
    values = mean_per_entity(torch.tensor([1.0, 5.0, 3.0, 7.0]), torch.tensor([4, 2, 4, 2]))
    assert values.tolist() == [6.0, 2.0]


def test_separation_judges_each_kind_of_latent_and_both():
    entity = torch.arange(50)
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 50, 2, generator=g)
    known, unknown = noise[0] + torch.tensor([3.0, 0.0]), noise[1] + torch.tensor([0.0, 0.0])
    found = separation(known, entity, unknown, entity, slice(0, 1), slice(1, 2))
    assert found.known > 0.95
    assert 0.3 < found.unknown < 0.7
    assert found.both > 0.9
    found.require(0.8)
    same = separation(noise[0], entity, noise[1], entity, slice(0, 1), slice(1, 2))
    with pytest.raises(AlignmentError, match="min_separation="):
        same.require(0.8)
    assert separation(noise[0], entity, noise[1], entity, slice(0, 2), slice(2, 2)).unknown is None


def test_states_are_those_of_the_last_token_whatever_the_batch():
    given = parts()
    model, tokenizer = given["model"], given["processing_class"]
    rows = [PromptRow(tokenizer(text).input_ids, i, 0) for i, text in enumerate(["w5", "w5 w6 w7", "w8 w9"])]
    states = entity_states(model, rows, 1, 3)
    with torch.no_grad():
        for row, h in zip(rows, states.h, strict=True):
            alone = model(torch.tensor([row.input_ids]), output_hidden_states=True).hidden_states[2][0, -1]
            torch.testing.assert_close(h, alone)


def test_statistics_are_per_template_and_the_scale_is_within_templates():
    g = torch.Generator().manual_seed(0)
    group = torch.arange(400) % 2
    unknown = torch.randn(400, 3, generator=g) * torch.tensor([1.0, 2.0, 0.0]) + 10 * group[:, None]
    known = torch.randn(40, 3, generator=g)
    found = code_statistics(unknown, group, known, torch.zeros(40, dtype=torch.long), [0, 0, 1])
    torch.testing.assert_close(found.unknown_mean[1], unknown[group == 1].mean(dim=0))
    torch.testing.assert_close(found.limit[0], unknown[group == 0].quantile(0.95, dim=0))
    assert found.scale[0].tolist() == found.scale[1].tolist()
    assert found.scale[0, :2].tolist() == pytest.approx([1, 2], rel=0.15)
    assert found.scale[0, 2] > 0, "a code that never moves does not rule the loss"
    assert found.known_mean[1].isnan().all()
    assert found.unknown_mean[2].isnan().all()


def test_pairs_are_shared_among_targets_as_little_as_can_be():
    pairs = draw_pairs([[1, 2, 3], [1, 2, 3], [1, 2, 3]], 1, seed=0)
    assert sorted(one for few in pairs for one in few) == [1, 2, 3]
    assert [len(few) for few in draw_pairs([[1, 2], [2]], 2, seed=0)] == [2, 1]
    assert draw_pairs([[1, 2, 3]] * 3, 1, seed=1) == draw_pairs([[1, 2, 3]] * 3, 1, seed=1)


def test_what_judges_takes_no_part_in_training(tmp_path):
    given = parts()
    args = settings(tmp_path)
    plan = plan_entities(
        given["train_dataset"],
        given["known"],
        given["unknown"],
        given["retain_dataset"],
        given["processing_class"],
        args,
    )
    assert 0 < len(plan.fit_unknown) < len(plan.unknown)
    it = SAEAlignmentTrainer(args=args, **given)
    train, judge = it.train_dataset, it.eval_dataset
    for items, fit in ((train, True), (judge, False)):
        for i in range(len(items)):
            for name in ("pair", "contrast", "still"):
                assert bool(it.setting.is_fit[items[i][name]]) == fit
    groups = [{items[i]["group"] for i in range(len(items))} for items in (train, judge)]
    assert not groups[0] & groups[1]
    kept = {tuple(row) for row in it.setting.plan.retain}
    assert not kept & {tuple(row) for row in it.setting.plan.eval_retain}
    assert isinstance(train, AlignmentItems)


def test_a_target_keeps_its_pair_through_all_templates_and_draws(tmp_path):
    it = SAEAlignmentTrainer(args=settings(tmp_path, pairs_per_target=1), **parts())
    pairs: dict[int, set[int]] = {}
    for i in range(len(it.train_dataset)):
        item = it.train_dataset[i]
        pairs.setdefault(item["entity"], set()).add(int(it.setting.states.entity[item["pair"]]))
        assert not it.setting.is_known[item["pair"]]
        assert it.setting.is_known[item["contrast"]]
        assert int(it.setting.states.group[item["pair"]]) == item["group"]
    assert [len(found) for found in pairs.values()] == [1] * 4
    assert len(set.union(*pairs.values())) == 4


def test_two_types_are_kept_apart(tmp_path):
    given = parts()
    for name in ("train_dataset", "known", "unknown"):
        renamed = [
            {"entity": e.entity, "entity_type": kind, "attributes": e.attributes}
            for kind in ("thing", "place")
            for e in given[name]
        ]
        given[name] = EntitySet(renamed)
    more = {"place": ["w60 {entity}"]}
    args = settings(tmp_path, templates={"thing": ["w61 {entity}"]} | more, held_out_templates={"thing": ["w62 {entity}"], "place": ["w63 {entity}"]})  # fmt: skip  # noqa: E501
    it = SAEAlignmentTrainer(args=args, **given)
    kinds = it.setting.plan.groups.types_of_groups()
    for i in range(0, len(it.train_dataset), 3):
        item = it.train_dataset[i]
        for name in ("pair", "contrast"):
            assert kinds[int(it.setting.states.group[item[name]])] == kinds[item["group"]]
    with pytest.raises(AlignmentError, match="entity_type='song'"):
        it.evaluate(entities("known", 3, kind="song"))


def test_groups_number_templates_per_type_and_keep_held_out_ones_apart():
    groups = TemplateGroups(["a", "b"], {"a": ["x {entity}", "y {entity}"], "b": ["z {entity}"]}, {"a": ["h {entity}"]})
    assert groups.of_type("a") == [0, 1]
    assert groups.of_type("a", held_out=True) == [2]
    assert groups.of_type("b") == [3]
    assert groups.groups[0] == ("a", "x {entity}")
    assert groups.types_of_groups()[:4] == [0, 0, 0, 1]
