"""What training minimises: objectives from a batch to a summed loss."""
