// A module of the other kind, whose name is a URL.
export function module(leak) {
  leak();
}
