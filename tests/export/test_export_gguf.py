"""GGUF files: what llama.cpp makes of them where it is installed, and what they hold where it is not."""

from __future__ import annotations

import logging

import gguf
import pytest
import torch
from conftest import byte_tokenizer, load_script, tiny_model
from gguf_models import MERGES, pruned, pruned_folder
from tokenizers import Tokenizer, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

import ffprune_env as ff
from ffprune_env.export.gguf.families import require_gguf
from ffprune_env.export.gguf.file import export_gguf
from ffprune_env.export.gguf.key_heads import expand_keys
from ffprune_env.export.gguf.llama_cpp import LlamaCpp


@pytest.fixture(scope="module")
def script():
    return load_script("evaluate/export_gguf.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pruned_folder(tmp_path_factory.mktemp("llama") / "pruned", "llama-gqa", [3, 20, 4, 7, 2, 24])


@pytest.mark.parametrize(
    ("index", "expanded"),
    [
        ([0, 0, 1, 1], [0, 1]),  # even: as it is
        ([0, 0, 1], [0, 0, 1]),  # uneven: one for each query head
        ([0, 0, 2, 2], [0, 2]),  # a key head that no query reads
        ([0, 0, 0, 0, 1, 1], [0, 0, 1]),  # pairs share, one key head serves two of them
        ([1, 1, 1], [1]),
        ([2], [2]),
    ],
)
def test_keys_are_repeated_no_more_than_it_takes(index, expanded):
    assert expand_keys(torch.tensor(index)) == expanded


@pytest.mark.parametrize("kind", ["f16", "f32"])
def test_the_file_has_a_size_for_every_layer(tmp_path, kind):
    folder = pruned_folder(tmp_path / "pruned", "llama-gqa", [3, 20, 4, 7, 1, 24])
    report = export_gguf(folder, tmp_path / "out" / "model.gguf", kind)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.gguf"]
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    field = {name: x.contents() for name, x in reader.fields.items()}
    assert field["general.architecture"] == "deci"
    assert field["deci.attention.head_count"] == [3, 4, 1]
    key_heads = field["deci.attention.head_count_kv"]
    assert key_heads[1:] == [2, 1]
    assert report.expanded_layers == (1 if key_heads[0] == 3 else 0)
    assert report.cache_growth == sum(key_heads) / (2 + 2 + 1)  # the folder has the keys that are read alone
    assert field["deci.feed_forward_length"] == [20, 7, 24]
    assert field["deci.attention.key_length"] == field["deci.rope.dimension_count"] == 8
    assert f"{report.expanded_params} parameters more" in field["general.description"]
    assert report.size == (tmp_path / "out" / "model.gguf").stat().st_size
    shapes = {x.name: list(x.shape) for x in reader.tensors}
    assert shapes["blk.0.attn_q.weight"] == [32, 24]
    assert shapes["blk.0.attn_k.weight"] == [32, 8 * key_heads[0]]
    assert shapes["blk.1.ffn_down.weight"] == [7, 32]


@pytest.mark.parametrize("family", ["llama", "llama-gqa", "mistral", "qwen2"])
def test_llama_cpp_computes_what_we_compute(tmp_path, family, windows, caplog):
    pytest.importorskip("cyllama")
    folder = pruned_folder(tmp_path / "pruned", family, [3, 20, 4, 7, 2, 24])
    with caplog.at_level(logging.WARNING):
        export_gguf(folder, tmp_path / "model.gguf")
    if family == "mistral":  # llama.cpp's windows must fit the sliding window for the two to agree
        assert "the context is written as 8, not 128" in caplog.text
        windows = windows[:, :8]
    theirs = LlamaCpp(tmp_path / "model.gguf", 64).losses(windows).mean().exp().item()
    assert theirs == pytest.approx(ff.perplexity(ff.load_pruned(folder), windows), rel=1e-3)


def test_a_chat_is_answered_by_the_template_in_the_file(tmp_path):
    pytest.importorskip("cyllama")
    tokenizer = byte_tokenizer(MERGES)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    model = tiny_model("llama-gqa").float()
    model.resize_token_embeddings(258)
    with torch.no_grad():  # it says letters only, which are text whatever comes before
        model.lm_head.weight[[i for i in range(256) if not tokenizer.decode([i]).isalpha()]] = 0
        model.lm_head.weight[256:] = 0
    folder = pruned(model, [3, 20, 4, 7, 2, 24], tmp_path / "pruned", tokenizer)
    export_gguf(folder, tmp_path / "model.gguf")
    opened = LlamaCpp(tmp_path / "model.gguf", 128)
    assert opened.chat_template == tokenizer.chat_template
    chat = [{"role": "user", "content": "line 1"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = ff.load_pruned(folder).generate(**prompt, max_new_tokens=6, do_sample=False)[
        0, prompt["input_ids"].shape[1] :
    ]
    assert opened.answer("line 1", 6) == tokenizer.decode(said)


def test_the_file_says_what_the_tokenizer_puts_around_text(tmp_path):
    folder = pruned_folder(tmp_path / "pruned", "llama", [3, 20, 4, 7, 2, 24])
    for around, expected in ((None, [False, False]), ("! $A", [True, False]), ("! $A #", [True, True])):
        tokenizer = byte_tokenizer(MERGES).backend_tokenizer
        if around is not None:
            tokens = [(token, tokenizer.token_to_id(token)) for token in "!#"]
            tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=tokens)
        ours = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="!", eos_token="#")
        ours.save_pretrained(folder)
        export_gguf(folder, tmp_path / "model.gguf")
        fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
        assert [fields[f"tokenizer.ggml.add_{name}_token"].contents() for name in ("bos", "eos")] == expected


def test_llama_cpp_splits_text_as_the_tokenizer_does(tmp_path):
    pytest.importorskip("cyllama")
    export_gguf(pruned_folder(tmp_path / "pruned", "llama", [3, 20, 4, 7, 2, 24]), tmp_path / "model.gguf")
    text = "Grüße, x = 1234;\n\tend"
    assert LlamaCpp(tmp_path / "model.gguf").tokens(text) == byte_tokenizer(MERGES)(text)["input_ids"]


def test_llama_cpp_splits_text_as_a_tokenizer_like_llamas_does(tmp_path):
    """Byte fallback, spaces as ▁, and merges whose order matters: "ab" and "bc" compete for the b of "abc"."""
    pytest.importorskip("cyllama")
    letters = "▁abcdxyz"
    merges = [("b", "c"), ("a", "b"), ("▁", "a"), ("bc", "d"), ("x", "y"), ("xy", "z"), ("▁a", "bcd")]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *letters, *("".join(x) for x in merges)]
    model = models.BPE(
        {w: i for i, w in enumerate(words)}, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    ours = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    folder = pruned_folder(tmp_path / "pruned", "llama", [3, 20, 4, 7, 2, 24], vocab_size=len(words))
    ours.save_pretrained(folder)
    export_gguf(folder, tmp_path / "model.gguf")
    for text in ("abcd abc xyz", "ab é xyxyz bcd"):
        assert LlamaCpp(tmp_path / "model.gguf").tokens(text) == ours(text)["input_ids"]


def test_added_tokens_without_a_row_in_the_embedding_are_left_out_of_a_file_that_opens(tmp_path, windows, caplog):
    pytest.importorskip("cyllama")
    folder = pruned_folder(tmp_path / "pruned", "llama", [3, 20, 4, 7, 2, 24])
    tokenizer = byte_tokenizer(MERGES)
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.add_tokens(["forever"])
    tokenizer.save_pretrained(folder)
    require_gguf(ff.load_pruned(folder), tokenizer, "f16")
    export_gguf(folder, tmp_path / "model.gguf")
    assert "the embedding has no row for added tokens, which are not written: <|pad|>, forever" in caplog.text
    opened = LlamaCpp(tmp_path / "model.gguf", 64)
    assert opened.tokens("forever <|pad|>", special=True) == byte_tokenizer(MERGES)("forever <|pad|>")["input_ids"]
    theirs = opened.losses(windows).mean().exp().item()
    assert theirs == pytest.approx(ff.perplexity(ff.load_pruned(folder), windows), rel=1e-3)


def with_end(tokenizer):
    tokenizer.add_special_tokens({"eos_token": "<|end|>"})


def with_template(tokenizer):
    tokenizer.add_tokens(["<|end|>"])
    tokenizer.chat_template = "{{ messages[0]['content'] + '<|end|>' }}"


def with_token_behind_text(tokenizer):
    tokenizer.add_special_tokens({"pad_token": "<|end|>"})
    tokens = [("<|end|>", 256)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("$A <|end|>", special_tokens=tokens)


@pytest.mark.parametrize("use", [with_end, with_template, with_token_behind_text])
def test_a_token_that_is_used_and_has_no_row_is_refused_before_a_search(tmp_path, use):
    folder = pruned_folder(tmp_path / "pruned", "llama", [3, 20, 4, 7, 2, 24])
    tokenizer = byte_tokenizer(MERGES)
    use(tokenizer)
    tokenizer.save_pretrained(folder)
    said = r"^token 256 of the tokenizer, '<\|end\|>', has no row in the embedding.*resize_token_embeddings\(257\)"
    for refuse in (
        lambda: require_gguf(ff.load_pruned(folder), tokenizer, "f16"),
        lambda: export_gguf(folder, tmp_path / "model.gguf"),
    ):
        with pytest.raises(ValueError, match=said):
            refuse()
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]


def test_a_vocabulary_larger_than_the_embedding_is_refused(tmp_path):
    folder = pruned_folder(tmp_path / "pruned", "llama", [3, 20, 4, 7, 2, 24], vocab_size=250)
    with pytest.raises(ValueError, match=r"^token 250 of the tokenizer, .* has no row in the embedding, which has 250"):
        export_gguf(folder, tmp_path / "model.gguf")


def test_a_tokenizer_that_is_not_bpe_is_refused(tmp_path):
    folder = pruned_folder(tmp_path / "pruned", "llama", [3, 20, 4, 7, 2, 24])
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a"))).save_pretrained(folder)
    with pytest.raises(ValueError, match="a WordLevel tokenizer cannot be written as GGUF"):
        export_gguf(folder, tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]


@pytest.mark.parametrize(
    ("kind", "off", "tokens_differ", "says"),
    [
        ("f16", 1.003, False, None),
        ("f16", 1.01, False, "what was written is not what was measured: "),
        ("q8_0", 1.02, False, None),
        ("q8_0", 0.95, False, "rounding makes no more than 3.05% of difference"),
        ("q4_k_m", 1.5, False, None),  # what it costs is said, and no error
        ("q4_k_m", 1.001, True, "llama.cpp makes other tokens of text than the model was made for"),
    ],
)
def test_a_file_that_is_another_model_is_an_error(
    tmp_path_factory, folder, script, monkeypatch, capsys, text_file, kind, off, tokens_differ, says
):
    ours, tokenizer = ff.load_pruned(folder, dtype="float32"), byte_tokenizer(MERGES)

    class Other:
        def __init__(self, file, context):
            assert (file, context) == (tmp_path / "model.gguf", 64)

        def losses(self, windows):
            return torch.tensor([off * ff.perplexity(ours, windows)]).log()

        def tokens(self, text):
            return tokenizer(text)["input_ids"][tokens_differ:]

    tmp_path = tmp_path_factory.mktemp("other")
    monkeypatch.setattr(script, "LlamaCpp", Other)
    monkeypatch.setattr(script.console, "width", 300)
    args = script.Args(
        pruned=folder, file=tmp_path / "model.gguf", kind=kind, windows=2, seq_len=64, text=str(text_file)
    )
    assert script.compare(args) == (1 if says else 0)
    captured = capsys.readouterr()
    assert f"{off - 1:+.2%}"[:-1] in captured.out
    lines = captured.err.splitlines()
    assert len(lines) == (1 if says else 0)
    assert says is None or says in lines[0]


def starting(tokenizer):
    """A tokenizer that puts a token in front of every text, whose text no other says."""
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    first = [("<s>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=first)
    return tokenizer


@pytest.mark.parametrize("bos", ["never", "always"])
def test_a_tokenizer_that_adds_a_token_makes_no_file_of_another_model(tmp_path, script, capsys, text_file, bos):
    pytest.importorskip("cyllama")
    model, tokenizer = tiny_model("llama").float(), starting(byte_tokenizer(MERGES))
    model.resize_token_embeddings(257)
    folder = pruned(model, [3, 20, 4, 7, 2, 24], tmp_path / "pruned", tokenizer)
    out = tmp_path / "model.gguf"
    export_gguf(folder, out)
    args = script.Args(pruned=folder, file=out, windows=2, seq_len=64, text=str(text_file), bos=bos)
    assert script.compare(args) == 0
    assert "llama.cpp's tokenizer gives the same tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("template", "code", "says", "written"),
    [
        (None, 2, "--ask needs a chat template, and the tokenizer in", False),
        ("{{ messages[0]['content'] }}", 2, "llama.cpp knows the chat templates of common models only", True),
        ("{{ '<|im_start|>' + messages[0]['content'] }}", 0, None, True),
    ],
)
def test_a_question_needs_a_chat_template(tmp_path, script, monkeypatch, capsys, template, code, says, written):
    pytest.importorskip("cyllama")
    tokenizer = byte_tokenizer(MERGES)
    tokenizer.chat_template = template
    model = tiny_model("llama").float()
    folder = pruned(model, [3, 20, 4, 7, 2, 24], tmp_path / "pruned", tokenizer)
    out = tmp_path / "model.gguf"
    monkeypatch.setattr("sys.argv", ["export_gguf.py", str(folder), str(out), "--ask", "why?"])
    assert script.main() == code
    lines = capsys.readouterr().err.splitlines()
    assert [says in line for line in lines] == ([True] if says else [])
    assert out.exists() is written


def test_a_lack_of_memory_is_one_line(folder, tmp_path, script, monkeypatch, capsys, text_file):
    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setattr(script, "window_losses", no_memory)
    out = tmp_path / "model.gguf"
    flags = ["--windows", "1", "--seq-len", "64", "--text", str(text_file)]
    pytest.importorskip("cyllama")
    monkeypatch.setattr("sys.argv", ["export_gguf.py", str(folder), str(out), *flags])
    assert script.main() == 1
    assert capsys.readouterr().err == "error: CUDA out of memory. Tried to allocate 2 GiB\n"


def test_the_script_writes_and_refuses(tmp_path, script, monkeypatch, capsys):
    llama = pruned_folder(tmp_path / "llama", "llama-gqa", [3, 20, 4, 7, 2, 24])
    opt = pruned_folder(tmp_path / "opt", "opt", [3, 20, 4, 7, 2, 24])
    out = tmp_path / "model.gguf"
    monkeypatch.setattr("sys.argv", ["export_gguf.py", str(llama), str(out), "--type", "bf16"])
    assert script.main() == 0
    printed = capsys.readouterr().out
    assert "share keys unevenly" in " ".join(printed.split())
    assert out.stat().st_size > 0
    written = out.read_bytes()
    for folder, message in ((opt, "a opt cannot be written as GGUF"), (tmp_path / "absent", "no config.json")):
        monkeypatch.setattr("sys.argv", ["export_gguf.py", str(folder), str(out)])
        assert script.main() == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert out.read_bytes() == written
    (llama / "tokenizer.json").unlink()
    with pytest.raises(OSError, match=r"holds no tokenizer\.json"):
        export_gguf(llama, out)
