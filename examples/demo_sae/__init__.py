"""The texts and the measures of the demo's SAE, which `train_demo_sae.py` trains."""
