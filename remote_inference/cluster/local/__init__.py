"""What one process keeps for itself: its sliding window, its pace, its pause, and who waits. No I/O."""
