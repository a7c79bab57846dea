"""Node Resource Interface: plugins that watch pods and containers and change them."""
