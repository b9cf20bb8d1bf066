"""What a training run leaves behind and how it is started, watched and stopped."""
