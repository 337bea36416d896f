"""What only the notebooks need: panels, plots, sliders, the exercises and their checker."""
