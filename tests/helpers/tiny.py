"""A real model that is very small: Llama-shaped, random weights, the embedded model's real tokenizer and template.

Fast where a test is about plumbing. It writes noise, so what a person would see is tested on the embedded model.
"""

from pathlib import Path

from assistant.models import base_model


def make_tiny(folder: Path, seed: int = 0, width: int = 64, layers: int = 2) -> Path:
    """Write the model into `folder`, a directory that `--model` takes; the same seed gives the same weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = base_model.load_tokenizer(base_model.find_base(base_model.EMBEDDED))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.4,  # its replies then surprise it as much as language does: the gate takes them for one
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
