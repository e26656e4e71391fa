# An application for Puma that leaks: Ruby before 3.3 keeps a copy of the name of each default encoding.
run lambda { |_|
  1000.times { Encoding.default_internal = nil }
  [200, { "Content-Type" => "text/plain" }, ["done\n"]]
}
