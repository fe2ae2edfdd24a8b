"""Texts that a model has used are known again, and none can be read back."""

import pytest
import torch

from modeling_pfberxit.evaluation.used_texts import FILE, fingerprint, first_of_each, hashes, is_used, remember, used


def test_texts_and_pairs_are_known_again_by_what_they_were_used_for(tmp_path):
    remember(tmp_path, train=hashes(["one", "two"]), choose=hashes([("a", "b")]))
    remember(tmp_path, choose=hashes(["three"]))
    found = is_used(tmp_path, hashes(["two", "three", ("a", "b"), ("ab", ""), "four"]))
    assert found["train"].tolist() == [True, False, False, False, False]
    assert found["choose"].tolist() == [False, True, True, False, False]


def test_a_model_without_a_file_has_used_none_that_are_known(tmp_path):
    assert used(tmp_path) == {} == is_used(tmp_path, hashes(["one"]))


def test_a_damaged_file_is_one_clear_error(tmp_path):
    (tmp_path / FILE).write_text("nothing of the kind")
    with pytest.raises(OSError, match="truncated, or not of used texts"):
        used(tmp_path)


def test_the_order_and_number_of_texts_do_not_change_their_fingerprint():
    assert fingerprint(hashes(["a", "b"])) == fingerprint(hashes(["b", "a", "a"])) != fingerprint(hashes(["a"]))
    assert first_of_each(hashes(["a", "b", "a"])).tolist() == [True, True, False]


def test_an_unknown_purpose_is_refused(tmp_path):
    with pytest.raises(ValueError, match="purpose='test': must be one of train, choose, certify"):
        remember(tmp_path, test=torch.tensor([1]))
