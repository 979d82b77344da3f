"""The window: views, models, delegates and dialogs."""
