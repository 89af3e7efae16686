"""What a model's residual stream holds, and what an adapter does to it; ``examination`` is the flow.

architecture, activations   a family's parts and weights; one forward pass with hooks
word_contrast, logit_attribution, residual_stream
                            toxic words, who writes them, and one model's reading of the base's answers
probes, value_vectors       where toxicity can be read, and what writes it
adapter_effects             what the adapter writes, and which layers carry the change
interventions, vector_ablation, causal_check
                            changes to a model, and what its answers say under them
verdicts                    what the numbers amount to
"""
