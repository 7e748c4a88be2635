"""Text into token ids: chat template, encoder."""
