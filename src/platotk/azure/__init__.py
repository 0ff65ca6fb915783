"""Azure Machine Learning: what it is told, what is made there, and what it says back. Prints nothing."""
