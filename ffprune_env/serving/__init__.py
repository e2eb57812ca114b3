"""How fast a model is where it is served: dense and pruned in turns, by transformers, llama.cpp and vLLM."""
