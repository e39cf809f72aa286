"""What people type: commands, runs, reports, and what they need around the loop."""
