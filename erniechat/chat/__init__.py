"""Text to and from the model: conversation, template, tokenizer, reply parser. No torch here."""
