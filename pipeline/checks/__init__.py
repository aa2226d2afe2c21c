"""What ``tidewatch check`` looks at, one file for each concern; each gives findings and changes nothing."""
