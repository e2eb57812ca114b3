"""A comparison of methods: who answers, what is kept, what is drawn."""
