# For scripts that ask what g++ 12 makes of a source: cc1plus, and with "cpp-12" as argument cc1, of pinned Debian packages, unpacked into
# the folder of which the caller is the owner. Sets `tools`, where they are.
unpack_gxx_12() { # folder, further packages of the same version
  local dir=$1 package
  shift
  local version=12.2.0-14+deb12u1 multiarch=x86_64-linux-gnu
  local lists=(-o "Dir::State::lists=$dir/lists" -o APT::Sandbox::User=root)
  mkdir -p "$dir/lists/partial" "$dir/root"
  cd "$dir"
  apt-get -qq "${lists[@]}" update > /dev/null
  apt-get -qq "${lists[@]}" download "g++-12=$version" "libgcc-12-dev=$version" "${@/%/=$version}" \
    libmpc3=1.3.1-1 libmpfr6=4.2.0-1 libgmp10=2:6.2.1+dfsg1-1.1 libisl23=0.25-1.1 > /dev/null
  for package in ./*.deb; do dpkg-deb -x "$package" "$dir/root"; done
  export LD_LIBRARY_PATH="$dir/root/usr/lib/$multiarch"
  tools="$dir/root/usr/lib/gcc/$multiarch/12"
}
