"""The laboratory: studies, speed and the claims of the documentation. It is part of the checkout, not of the wheel."""
