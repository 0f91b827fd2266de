"""Which query answers for which true mask, and what each mistake costs."""
