"""Writes ``sentencepiece.json``: a small SentencePiece vocabulary and the ids that sentencepiece gives to texts.

Run it in an environment with sentencepiece (0.2.1), torch and transformers (for what ``make_greedy_reference.py``,
whose texts are used, imports):

    python make_sentencepiece_reference.py

The vocabulary is trained on this package's README, with the settings of Llama 2's and Mistral's: BPE, digits apart,
unknown characters as bytes, text as it is. With real ones (mistral-common's ``tokenizer.model.v1`` and
``mistral_instruct_tokenizer_240323.model.v3``) the same comparison was run by hand: they are not ours to copy.
"""

import io
import json
from pathlib import Path

import sentencepiece
from make_greedy_reference import PROMPTS, TEXTS

HERE = Path(__file__).parent


def vocabulary(add_dummy_prefix: bool) -> dict:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((HERE / "../../README.md").read_text(encoding="utf-8").splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        split_digits=True,
        character_coverage=0.99,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=add_dummy_prefix,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(processor.vocab_size())
    kinds = {2: processor.is_unknown, 3: processor.is_control, 6: processor.is_byte}
    return {
        "add_space_prefix": add_dummy_prefix,
        "tokens": [processor.id_to_piece(index) for index in ids],
        "scores": [processor.get_score(index) for index in ids],
        "types": [next((kind for kind, is_it in kinds.items() if is_it(index)), 1) for index in ids],
        "texts": [
            {"text": text, "ids": processor.encode(text)} for text in [*PROMPTS, *TEXTS] if "<|" not in text
        ],
    }


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(vocabulary(prefix), ensure_ascii=False) for prefix in (True, False))
    (HERE / "sentencepiece.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
