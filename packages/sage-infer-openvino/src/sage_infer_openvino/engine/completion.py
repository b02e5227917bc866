"""Apply a new token to its completion: text, finish reason, and the consumer's delta."""

from __future__ import annotations

from collections.abc import Collection

from sage_infer.schemas import FinishReason, TokenDelta, TokenLogprob

from sage_infer_openvino.engine.sequence import SequenceState

__all__ = ["append_token"]


def append_token(
    sequence: SequenceState, token: int, logprob: TokenLogprob | None, eos_token_ids: Collection[int]
) -> TokenDelta:
    """Append a token and return the consumer's delta; sets ``finish_reason`` for the last token.

    A stop token has no text. Text held back as part of a character or of a possible stop string is emitted with the
    last token.
    """
    params = sequence.request.params
    sequence.tokens.append(token)
    stops_count = sequence.output_length >= params.min_tokens
    reason: FinishReason | None = None
    text, is_end = "", False
    grammar = sequence.grammar
    if stops_count and (token in params.stop_token_ids or (token in eos_token_ids and not params.ignore_eos)):
        reason, is_end = "stop", True
    elif grammar is not None and token in eos_token_ids:
        reason, is_end = "stop", True  # a constraint allows it only at a valid end of the output
    else:
        text = sequence.detokenizer.push(token)
        if grammar is not None and grammar.accept(token):
            reason = "stop"
        elif len(sequence.tokens) >= sequence.max_length:
            reason = "length"
    if reason is not None:
        text += sequence.detokenizer.flush()
    if sequence.stop_strings is not None and stops_count:
        text, found = sequence.stop_strings.push(text)
        if found:
            reason = "stop"
        elif reason is not None:
            text += sequence.stop_strings.flush()
    if sequence.undelivered:
        text, sequence.undelivered = sequence.undelivered + text, ""
    sequence.finish_reason = reason
    if logprob is not None:
        logprob.is_end = is_end
    return TokenDelta(text, (token,), sequence.index, (logprob,) if logprob else None, reason)
