"""What `microflow doctor` looks at: one room for each subject, and every probe asks the real thing."""
