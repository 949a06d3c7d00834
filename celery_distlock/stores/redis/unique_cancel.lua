-- ARGV: id, linger (ms), '1' to end its window, too.

-- include: unique
leave('queued', owner)
if ARGV[3] == '1' then
  leave('window', owner)
end
return 1
