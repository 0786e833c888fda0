"""What runs leave behind: files, records, figures, pictures, tables and pages."""
