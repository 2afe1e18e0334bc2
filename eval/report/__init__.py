"""What people see of a comparison: a page, a pull-request comment, a table for programs, a test report."""
