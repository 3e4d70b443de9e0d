"""What leaves: plain timm models, on the disk and on the Hugging Face Hub, and coming back."""
