"""What is done with records: fronts, statistics, comparisons, figures and the report page."""
