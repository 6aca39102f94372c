"""What people said, and what it means. Never imports torch or gradio."""
