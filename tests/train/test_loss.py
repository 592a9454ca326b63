"""Every masking rule of the losses, by numbers computed by hand."""

import math

import pytest
import torch

from train.loss import IGNORE, answer_loss, sample_means, token_loss


def logits_for(*probabilities: float) -> torch.Tensor:
    """Logits whose softmax is these probabilities."""
    return torch.tensor([[math.log(p) for p in probabilities]])


RISK = logits_for(0.5, 0.25, 0.25)
CATEGORY = logits_for(0.8, 0.2)


def loss(risk: int, category: int, safe=(0,)) -> float:
    return float(token_loss(RISK, CATEGORY, torch.tensor([risk]), torch.tensor([category]), safe))


def test_an_unsafe_token_pays_for_risk_and_category():
    assert loss(1, 1) == pytest.approx(-math.log(0.25) - math.log(0.2), rel=1e-6)


def test_a_controversial_token_pays_for_its_category_too():
    assert loss(2, 0) == pytest.approx(-math.log(0.25) - math.log(0.8), rel=1e-6)


def test_a_safe_token_pays_for_risk_only_even_with_a_category_given():
    assert loss(0, 1) == pytest.approx(-math.log(0.5), rel=1e-6)


def test_an_unlabelled_category_of_an_unsafe_token_adds_nothing():
    assert loss(1, IGNORE) == pytest.approx(-math.log(0.25), rel=1e-6)


def test_an_unlabelled_token_adds_nothing_at_all():
    assert loss(IGNORE, 1) == 0.0


def test_which_levels_are_safe_is_the_policys_to_say():
    assert loss(1, 1, safe=(0, 1)) == pytest.approx(-math.log(0.25), rel=1e-6)
    assert loss(0, 1, safe=()) == pytest.approx(-math.log(0.5) - math.log(0.2), rel=1e-6)


def test_the_response_loss_is_the_mean_over_all_its_tokens_not_over_the_unsafe_ones():
    # One response of 4 tokens: Safe, Safe, Unsafe/1, Unsafe/1 at the same logits.
    per_token = token_loss(
        RISK.repeat(4, 1),
        CATEGORY.repeat(4, 1),
        torch.tensor([0, 0, 1, 1]),
        torch.tensor([IGNORE, IGNORE, 1, 1]),
        (0,),
    )
    total = sample_means(per_token, torch.zeros(4, dtype=torch.long), torch.ones(4))
    expected = (2 * -math.log(0.5) + 2 * (-math.log(0.25) - math.log(0.2))) / 4
    assert float(total) == pytest.approx(expected, rel=1e-6)


def test_every_response_counts_the_same_whatever_its_length():
    per_token = torch.tensor([1.0, 1.0, 1.0, 5.0])
    assert float(sample_means(per_token, torch.tensor([0, 0, 0, 1]), torch.ones(4))) == pytest.approx(
        1.0 + 5.0
    )


def test_a_samples_weight_multiplies_its_mean():
    per_token, weight = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([2.0, 2.0, 0.5])
    assert float(sample_means(per_token, torch.tensor([3, 3, 7]), weight)) == pytest.approx(
        2 * 2.0 + 0.5 * 5.0
    )


def test_no_labelled_position_gives_zero_that_can_be_differentiated():
    empty = torch.zeros(0, requires_grad=True)
    total = sample_means(empty, torch.zeros(0, dtype=torch.long), torch.zeros(0))
    total.backward()
    assert total.item() == 0.0


def test_the_answer_loss_sums_weighted_tokens_and_skips_ignored_ones():
    total = answer_loss(RISK.repeat(3, 1), torch.tensor([0, 1, IGNORE]), torch.tensor([1.0, 2.0, 9.0]))
    assert float(total) == pytest.approx(-math.log(0.5) - 2 * math.log(0.25), rel=1e-6)
