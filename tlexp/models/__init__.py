"""Networks on top of backbones: heads by domain, and heads that are solved rather than trained."""
