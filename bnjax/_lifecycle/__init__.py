"""What happens to a norm after it is built: the parts that know no framework."""
