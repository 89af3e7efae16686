"""Which parts of an adapter do it, by what happens without them or with them alone; ``explain`` is the flow.

pairs                       a toxic and a harmless answer of the base to one prompt, and placebo pairs
heads                       where each head looks, what it writes, how far the adapter moves it
sites, patching             one model's values put into the other; what may be claimed of it
patched_answers             the same while the model answers
neurons                     shares of groups of neurons, and whether toxicity was unlearned or bypassed
parts, minimal              the adapter switched on in part, and the smallest part that does it, written as an adapter
"""
