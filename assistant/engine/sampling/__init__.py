"""From logits to tokens: settings, draws, beams, grammars and stops."""
