# SPDX-License-Identifier: Apache-2.0
"""New words in the host's text encoders: where their vectors come to stand, and what a gradient reaches."""

import copy

import pytest
import torch

pytestmark = pytest.mark.comfy


@pytest.fixture(scope="module")
def clip(comfy):
    from tests.host import tiny

    return tiny.clip("sdxl")


def vectors(n=2, seed=0, names=("TOK",), **widths):
    generator = torch.Generator().manual_seed(seed)
    widths = widths or {"clip_l": 32, "clip_g": 64}
    return {
        name: {key: torch.randn(n, width, generator=generator) for key, width in widths.items()}
        for name in names
    }


def saved(folder, name, by_key):
    from safetensors.torch import save_file

    save_file(
        {key: value.contiguous() for key, value in by_key.items()}, folder / f"{name}.safetensors"
    )


def encoded(clip, text):
    with torch.inference_mode():
        ((cond, extra),) = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    return cond.clone(), extra["pooled_output"].clone()


@pytest.fixture
def with_files(clip, tmp_path):
    """A CLIP that reads `embedding:` from a folder, and the folder."""
    made = clip.clone()
    made.tokenizer = copy.copy(clip.tokenizer)
    for name in ("clip_l", "clip_g"):
        part = copy.copy(getattr(clip.tokenizer, name))
        part.embedding_directory = [str(tmp_path)]
        setattr(made.tokenizer, name, part)
    return made, tmp_path


TEXTS = (
    "a photo of TOK",
    "TOK",
    "TOK, a cat",
    "(TOK:1.3) in the (rain)",
    "a cat\nTOK\n(a (TOK dog):0.7), TOK",
    "very " * 73 + "TOK and TOK",
    "word " * 80 + "TOK",
)


@pytest.mark.parametrize("text", TEXTS)
def test_a_bound_name_is_the_hosts_embedding_syntax(with_files, text):
    from graft.host.text import tokens

    clip, folder = with_files
    words = vectors()
    saved(folder, "word", words["TOK"])
    want = encoded(clip, text.replace("TOK", " embedding:word "))
    got = encoded(tokens.bind(clip, words), text)
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)


def test_names_are_words_of_their_own_and_the_longest_counts(with_files):
    from graft.host.text import tokens

    clip, folder = with_files
    words = vectors(names=("TOK", "TOK2"))
    for name, by_key in words.items():
        saved(folder, name, by_key)
    bound = tokens.bind(clip, words)
    want = encoded(clip, "embedding:TOK2 and embedding:TOK  but TOKYO, sTOK")
    got = encoded(bound, "TOK2 and TOK but TOKYO, sTOK")
    assert torch.equal(got[0], want[0])


def test_binding_changes_nothing_else(clip):
    from graft.host.text import tokens

    before = encoded(clip, "a TOK cat")
    bound = tokens.bind(clip, vectors())
    assert torch.equal(encoded(bound, "a red cat")[0], encoded(clip, "a red cat")[0])
    assert not torch.equal(encoded(bound, "a TOK cat")[0], before[0])
    assert torch.equal(encoded(clip, "a TOK cat")[0], before[0])


def test_a_clip_can_learn_one_concept_after_the_other(clip):
    from graft.host.text import tokens

    words = vectors(names=("TOK", "TOK2"))
    at_once = tokens.bind(clip, words)
    by_turns = tokens.bind(tokens.bind(clip, {"TOK": words["TOK"]}), {"TOK2": words["TOK2"]})
    text = "TOK2 and (TOK:1.1)"
    assert torch.equal(encoded(by_turns, text)[0], encoded(at_once, text)[0])


def test_an_encoder_without_vectors_does_not_see_the_name(clip):
    from graft.host.text import tokens

    bound = tokens.bind(clip, vectors(clip_g=64))
    left = [t for t, _ in bound.tokenize("a TOK cat")["l"][0] if not torch.is_tensor(t)]
    assert left == [t for t, _ in clip.tokenize("a cat")["l"][0]]


@pytest.mark.parametrize("text", TEXTS)
def test_training_encodes_what_the_host_encodes(clip, text):
    from graft.host.text import tokens
    from graft.host.text.text_trainee import text_trainee

    words = vectors()
    want = encoded(tokens.bind(clip, words), text)
    with text_trainee(clip) as trained:
        got = trained.encode([text], words)[text]
    assert torch.equal(got.text, want[0])
    assert torch.equal(got.extras["pooled_output"], want[1])


def test_a_gradient_reaches_every_row_and_nothing_else(clip):
    from graft.host.text.text_trainee import text_trainee

    words = vectors(3)
    every = [v.requires_grad_() for by_key in words.values() for v in by_key.values()]
    with text_trainee(clip) as trained:
        text = "a photo of (TOK:1.2), red"
        made = trained.encode([text], words)[text]
        (made.text.square().sum() + made.extras["pooled_output"].square().sum()).backward()
        assert all(p.grad is None for p in trained.model.parameters())
    for v in every:
        assert (v.grad.norm(dim=1) > 0).all()


def test_the_gradient_is_the_difference_quotient(clip):
    from graft.host.text.text_trainee import text_trainee

    words = vectors(1)
    one = words["TOK"]["clip_l"].requires_grad_()
    towards = torch.randn(one.shape, generator=torch.Generator().manual_seed(5))

    def value(trained):
        text = "a (TOK:1.3) b"
        return trained.encode([text], words)[text].text.double().sin().sum()

    with text_trainee(clip) as trained:
        value(trained).backward()
        h, sides = 1e-2, []
        for sign in (1, -1):
            with torch.no_grad():
                one.add_(sign * h * towards)
                sides.append(float(value(trained)))
                one.sub_(sign * h * towards)
    quotient = (sides[0] - sides[1]) / (2 * h)
    assert float((one.grad * towards).sum()) == pytest.approx(quotient, rel=2e-2)


def test_the_clip_is_afterwards_as_it_was(clip):
    from graft.host.text.text_trainee import text_trainee

    before = encoded(clip, "a red cat")
    kept = {name: (p, p.requires_grad) for name, p in clip.cond_stage_model.named_parameters()}
    with pytest.raises(ZeroDivisionError), text_trainee(clip) as trained:
        trained.encode(["a cat"], {})
        raise ZeroDivisionError
    assert all("forward" not in m.__dict__ for m in clip.cond_stage_model.modules())
    for name, p in clip.cond_stage_model.named_parameters():
        assert p.requires_grad == kept[name][1]
        assert p.is_inference() == kept[name][0].is_inference()
    assert torch.equal(encoded(clip, "a red cat")[0], before[0])


def test_a_table_is_of_the_encoders_own_words(clip):
    from graft.adapters.tokens import Concept, Tokens
    from graft.host.text import tokens

    found = tokens.tables(clip, Tokens((Concept("TOK", 2, "cat dog"),)))
    assert set(found) == {"clip_l", "clip_g"}
    for key, table in found.items():
        weight = getattr(clip.cond_stage_model, key).transformer.get_input_embeddings().weight
        ids = clip.tokenizer.clip_l.tokenizer("cat dog")["input_ids"][1:-1]
        assert len(ids) == 2 and torch.equal(table.words["cat dog"], weight[ids].float())
        assert table.std == pytest.approx(float(weight.float().std()))
        assert table.width == weight.shape[1]
