# A service that leaks nothing. What a request brought is garbage, which Ruby collects when there is more of it.
run lambda { |environment|
  words = Array.new(50) { |number| "#{environment["QUERY_STRING"]} #{number} " * 20 }
  [200, { "Content-Type" => "text/plain" }, [words.join]]
}
