# Ruby before 3.4 (bug 20150): who asks for the graphemes of a string that is not UTF-8 leaves the expression behind that finds them.
TEXT = "hello world".encode(Encoding::UTF_32LE)

def graphemes
  10.times { TEXT.grapheme_clusters }
end

puts "ready"
$stdout.flush
loop do
  graphemes
  sleep 0.02
end
