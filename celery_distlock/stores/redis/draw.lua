-- ARGV: '', linger (ms). Returns the number of a place at the end of the line, which may be enqueued with later.

return next_number()
