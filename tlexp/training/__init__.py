"""Training: the LightningModule, its optimizer groups, schedules and metrics."""
