"""Fast implementations of the recurrence: rows jump from update to update, and skipped steps cost what they must."""
