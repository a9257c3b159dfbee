"""Further pulls on the model beside the two losses: a file each."""
