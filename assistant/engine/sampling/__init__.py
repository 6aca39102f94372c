"""From logits to tokens: settings, sampler, beam search, grammars and stop strings."""
