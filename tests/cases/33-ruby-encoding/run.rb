# Ruby before 3.3: whoever sets the default encoding leaves the copy of its old name behind, 16 bytes.
def set_encoding
  500.times { Encoding.default_internal = nil }
end

puts "ready"
$stdout.flush
loop do
  set_encoding
  sleep 0.02
end
